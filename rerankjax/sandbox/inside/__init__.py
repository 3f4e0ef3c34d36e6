"""What runs inside the box, and so imports nothing but the standard library and itself."""
