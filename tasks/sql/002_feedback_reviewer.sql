-- Who read a correction and stands for it; only then may it become a training example.
ALTER TABLE feedback ADD COLUMN reviewed_by text;
ALTER TABLE feedback ADD CONSTRAINT feedback_accepted_is_signed CHECK (status <> 'accepted' OR reviewed_by IS NOT NULL) NOT VALID;
