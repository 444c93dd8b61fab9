"""What every room uses: files, devices, signals, words."""
