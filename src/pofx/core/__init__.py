"""The contract: likelihoods, spaces, measures, models, learners, the registry. It imports no family."""
