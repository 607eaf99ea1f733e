"""What a layout will cost before it runs, and what a step that ran looked like."""
