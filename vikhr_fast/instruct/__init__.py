"""Instruction tuning (section 3.3): conversations of many sources in one schema, only the good ones, as shards."""
