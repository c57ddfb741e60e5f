"""What can be watched while a run goes on: metrics, a log and a progress view, all of them local."""
