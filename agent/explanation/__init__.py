"""Write explanations and check their claims."""
