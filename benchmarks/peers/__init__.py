"""Other ways to make a trained net smaller, each as its documentation tells, on the same net and the same rows."""
