"""The loop on a DeepSpeed engine, and what it calls. Imported only where training happens."""
