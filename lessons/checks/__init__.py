"""The exercises: in each file the functions a learner writes, and the ways they go wrong. Equation numbers are the lesson's."""
