"""Who this device becomes: enrolment. Imported by short-lived processes only."""
