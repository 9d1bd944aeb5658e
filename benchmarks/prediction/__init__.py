"""What is predicted before there is a device, beside what was published and what is measured here."""
