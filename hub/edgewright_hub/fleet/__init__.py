"""Who belongs to the fleet: tokens, certificates, enrolment."""
