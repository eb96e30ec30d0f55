"""An operator, `star_relu`, a task, `spirals`, a transform, `scale_layers`, a strategy, `climb`, and an objective,
`lipschitz`, outside archc."""
