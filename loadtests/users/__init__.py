"""Users for Locust: one greenlet drives thousands of devices."""
