"""A folder for each dialect: request types, answers, streams and routes."""
