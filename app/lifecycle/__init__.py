"""The modules of the platform: their contract, how they are found, opened and reported. Imports no module itself."""
