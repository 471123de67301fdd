"""From records to laws, figures and the report. Reads records only; never trains."""
