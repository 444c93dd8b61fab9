"""What private detectors are worth: private against fine-tuning without privacy from the same public start."""
