"""Loggers that a laboratory is told to: each a `Sink`, fed from the facts and tables of the storage."""
