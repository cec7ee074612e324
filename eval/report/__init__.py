"""Print, save and draw the results of a comparison."""
