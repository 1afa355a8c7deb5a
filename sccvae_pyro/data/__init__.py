"""From files to minibatches: schema, features, splits, the simulator and the loaders."""
