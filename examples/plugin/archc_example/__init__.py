"""An operator, `star_relu`, and a task, `spirals`, outside archc."""
