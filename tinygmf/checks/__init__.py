"""What proves an installation."""
