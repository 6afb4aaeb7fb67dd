"""What sampling the router's choices costs: on the step loop, and in the controller."""
