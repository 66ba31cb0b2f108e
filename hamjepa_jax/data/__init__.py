"""Data: sources of labelled images, the host pipeline, and augmentation on the device."""
