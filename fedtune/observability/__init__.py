"""What happens in a run: recorded once as events, shown as progress, summary and report."""
