-- The quickstart's shop: three tables, and a procedure that trades in it.
CREATE TABLE customers (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name   text NOT NULL,
    email  text UNIQUE,
    since  timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE products (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title  text NOT NULL,
    price  numeric(12,2) NOT NULL,
    stock  int NOT NULL
);
CREATE TABLE orders (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer  bigint NOT NULL REFERENCES customers,
    product   bigint NOT NULL REFERENCES products,
    quantity  int NOT NULL,
    total     numeric(12,2) NOT NULL,
    status    text NOT NULL DEFAULT 'new',
    placed    timestamptz NOT NULL DEFAULT clock_timestamp(),
    note      text
);
INSERT INTO customers (name, email, since)
SELECT 'Customer ' || i, 'customer' || i || '@shop.example', now() - i * interval '1 hour' FROM generate_series(1, 1000) i;
INSERT INTO products (title, price, stock)
SELECT 'Product ' || i, (i * 37 % 10000) / 100.0, 1000 + i FROM generate_series(1, 200) i;
INSERT INTO orders (customer, product, quantity, total)
SELECT 1 + i * 7 % 1000, 1 + i * 13 % 200, 1 + i % 5, (i * 31 % 100000) / 100.0 FROM generate_series(1, 20000) i;

-- What somebody who owns the tables does for the role that captures them.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO highwater;
CREATE PUBLICATION highwater_shop FOR TABLE customers, products, orders WITH (publish_via_partition_root = true);

CREATE PROCEDURE trade(seconds int) LANGUAGE plpgsql AS $$
DECLARE
    ends timestamptz := clock_timestamp() + seconds * interval '1 second';
    pick bigint;
BEGIN
    WHILE clock_timestamp() < ends LOOP
        FOR i IN 1..10 LOOP
            pick := 1 + floor(random() * 20000);
            INSERT INTO orders (customer, product, quantity, total, note)
            VALUES (1 + pick % 1000, 1 + pick % 200, 1 + pick % 5, pick / 7.0, CASE WHEN pick % 3 = 0 THEN 'ring twice, "please"' END);
            UPDATE products SET stock = stock - 1 WHERE id = 1 + pick % 200;
            COMMIT;
            UPDATE orders SET status = 'paid' WHERE id = pick;
            COMMIT;
            DELETE FROM orders WHERE id = 1 + floor(random() * 20000) AND status = 'paid';
            COMMIT;
        END LOOP;
        UPDATE customers SET name = name || '.' WHERE id = 1 + pick % 1000;
        COMMIT;
        PERFORM pg_sleep(0.05);
    END LOOP;
END $$;

-- Where `./quickstart --once` compares what landed with the shop; not captured.
CREATE SCHEMA landed;

CREATE FUNCTION landed.prepare(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE (
        SELECT format('CREATE TABLE landed.%I (%s, _hw_op text, _hw_offset bigint, _hw_ordinal bigint, _hw_position text,
                       _hw_tx text, _hw_commit_time text, _hw_absent text, _hw_old_key text)',
                      name, string_agg(format('%I text', attname), ', ' ORDER BY attnum))
          FROM pg_attribute WHERE attrelid = format('public.%I', name)::regclass AND attnum > 0 AND NOT attisdropped);
END $$;

-- The last event of each key, as the table's own types, against the table.
CREATE FUNCTION landed.compare(name text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    events bigint;
    offsets bigint;
    rows bigint;
    missing bigint;
    extra bigint;
BEGIN
    EXECUTE format('SELECT count(*), count(DISTINCT _hw_offset) FROM landed.%I', name) INTO events, offsets;
    IF events = 0 OR events <> offsets THEN
        RAISE EXCEPTION '%: % events landed at % offsets', name, events, offsets;
    END IF;
    EXECUTE format(
        'CREATE TEMPORARY TABLE final ON COMMIT DROP AS
         SELECT (jsonb_populate_record(NULL::public.%1$I, to_jsonb(last))).* FROM (
             SELECT DISTINCT ON (id) * FROM landed.%1$I ORDER BY id, _hw_offset DESC) last
          WHERE _hw_op <> ''delete''', name);
    EXECUTE format('SELECT count(*) FROM public.%I', name) INTO rows;
    EXECUTE format('SELECT count(*) FROM (SELECT * FROM public.%I EXCEPT ALL SELECT * FROM final) x', name) INTO missing;
    EXECUTE format('SELECT count(*) FROM (SELECT * FROM final EXCEPT ALL SELECT * FROM public.%I) x', name) INTO extra;
    IF missing > 0 OR extra > 0 THEN
        RAISE EXCEPTION '%: % rows are missing or differ, % are too many or differ', name, missing, extra;
    END IF;
    RETURN format('equal: %s, %s rows, from %s events', name, rows, events);
END $$;
