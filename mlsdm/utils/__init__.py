"""Names that operators' scripts import. Nothing of this service does; what is behind them lives elsewhere."""
