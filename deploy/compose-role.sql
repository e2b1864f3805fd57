-- The role that captures: it may log in, stream, and read what shop.sql grants.
CREATE ROLE highwater LOGIN REPLICATION PASSWORD 'highwater';
