"""What private detectors are worth: private against plain fine-tuning from the same public start."""
