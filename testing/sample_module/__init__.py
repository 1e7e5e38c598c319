"""A module of the platform for tests: it has one of everything, and fails where and how it is told to."""
