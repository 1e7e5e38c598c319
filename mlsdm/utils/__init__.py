"""Import names that operators' scripts depend on. Nothing in this service uses them."""
