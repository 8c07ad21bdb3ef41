"""What every part of jaxrobust stands on; not for users."""
