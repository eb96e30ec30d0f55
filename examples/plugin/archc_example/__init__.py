"""An operator, `star_relu`, a task, `spirals`, and a transform, `scale_layers`, outside archc."""
