"""The math of a Mixture-of-Experts model, split into its attention half and its expert half.

``AttentionModel`` holds everything but the experts, ``ExpertBank`` holds experts in slots. Both read only their own
tensors of a checkpoint. What is special to one model family (config keys, tensor names) is in ``families``.
"""
