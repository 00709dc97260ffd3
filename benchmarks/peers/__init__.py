"""The servers that others would use instead, each written as its documentation shows and fairly configured."""
