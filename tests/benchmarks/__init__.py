"""Speed against the published loops; run by hand."""
