"""Who may speak to whom: our rules and Istio's objects, from a manifest's head to a verdict and its explanation."""
