"""Models that answer: message types, engines and model files. The only code a laptop needs."""
