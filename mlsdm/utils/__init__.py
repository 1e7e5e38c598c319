"""Import names that operators' scripts depend on. Nothing in this server uses them."""
