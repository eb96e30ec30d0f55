"""What `archc` offers as a Python library; every command is one function here."""
