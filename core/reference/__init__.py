"""The specification as programs: readable models that the native core must equal bit for bit."""
