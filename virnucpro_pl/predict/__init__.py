"""The LightningModules that predict: what runs on the device, and what becomes of failures."""
