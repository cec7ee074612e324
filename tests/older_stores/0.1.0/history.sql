SELECT pg_catalog.set_config('search_path', '', false);
CREATE TABLE public.evoke_answers (
    key text NOT NULL,
    digest text NOT NULL,
    answer text NOT NULL,
    at double precision NOT NULL
);
CREATE TABLE public.evoke_due (
    user_hash text NOT NULL
);
CREATE TABLE public.evoke_events (
    id bigint NOT NULL,
    user_id text NOT NULL,
    item text NOT NULL,
    "timestamp" double precision NOT NULL,
    kind text NOT NULL,
    rating double precision,
    split text
);
CREATE SEQUENCE public.evoke_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.evoke_events_id_seq OWNED BY public.evoke_events.id;
CREATE TABLE public.evoke_meta (
    id integer NOT NULL,
    value text
);
CREATE SEQUENCE public.evoke_meta_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.evoke_meta_id_seq OWNED BY public.evoke_meta.id;
CREATE TABLE public.evoke_profiles (
    id bigint NOT NULL,
    user_id text,
    key text NOT NULL,
    history text NOT NULL,
    model text NOT NULL,
    fingerprint text NOT NULL,
    profile text NOT NULL
);
CREATE SEQUENCE public.evoke_profiles_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.evoke_profiles_id_seq OWNED BY public.evoke_profiles.id;
CREATE TABLE public.evoke_sessions (
    id text NOT NULL,
    user_id text,
    state text NOT NULL,
    version integer NOT NULL,
    updated double precision NOT NULL
);
ALTER TABLE ONLY public.evoke_events ALTER COLUMN id SET DEFAULT nextval('public.evoke_events_id_seq'::regclass);
ALTER TABLE ONLY public.evoke_meta ALTER COLUMN id SET DEFAULT nextval('public.evoke_meta_id_seq'::regclass);
ALTER TABLE ONLY public.evoke_profiles ALTER COLUMN id SET DEFAULT nextval('public.evoke_profiles_id_seq'::regclass);
INSERT INTO public.evoke_answers VALUES ('6cc59122ec733d7631f160df410760b354e3fdc9d0152261c76629e68a802ab2', 'b71da2924e79ac2dc7534ae37cfa672120dfe9cfa9841c092879b3e9459022fc', '{"accepted": 0}', 1796078289.2139585);
INSERT INTO public.evoke_events VALUES (1, 'ann', 'salt-ledger', 1500000000, '', NULL, 'train');
INSERT INTO public.evoke_events VALUES (2, 'ann', 'night-ferry', 1531536000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (3, 'eve', 'lamp-oath', 1500000000, '', NULL, 'train');
INSERT INTO public.evoke_events VALUES (4, 'eve', 'salt-ledger', 1531536000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (5, 'eve', 'brass-alibi', 1563072000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (6, 'bob', 'salt-ledger', 1500000000, '', 5, 'train');
INSERT INTO public.evoke_events VALUES (7, 'bob', 'night-ferry', 1531536000, '', 5, NULL);
INSERT INTO public.evoke_events VALUES (8, 'bob', 'quiet-vault', 1563072000, '', 5, NULL);
INSERT INTO public.evoke_events VALUES (9, 'bob', 'tin-comet', 1594608000, '', 5, NULL);
INSERT INTO public.evoke_events VALUES (10, 'cem', 'glass-orchard', 1500000000, '', NULL, 'train');
INSERT INTO public.evoke_events VALUES (11, 'cem', 'ninth-valve', 1531536000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (12, 'cem', 'tin-comet', 1563072000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (13, 'dot', 'night-ferry', 1500000000, '', NULL, 'train');
INSERT INTO public.evoke_events VALUES (14, 'dot', 'quiet-vault', 1531536000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (15, 'dot', 'brass-alibi', 1563072000, '', NULL, NULL);
INSERT INTO public.evoke_events VALUES (16, 'ann', 'glass-orchard', 1700000000, 'dislike', NULL, NULL);
INSERT INTO public.evoke_events VALUES (17, 'ann', 'ninth-valve', 1700000001, '', 2, NULL);
INSERT INTO public.evoke_events VALUES (18, 'ann', 'quiet-vault', 1796078290.9353433, 'seen', NULL, NULL);
INSERT INTO public.evoke_meta VALUES (1, 'b5368eb56a3f4dcd');
INSERT INTO public.evoke_profiles VALUES (1, 'ann', '', '["salt-ledger", "night-ferry"]', 'http://localhost:8000/v1 a-model', '09fa0f2f7cad', '{"profile": {"summary": "Likes crimes at sea.", "interests": [{"name": "ships", "weight": 0.8, "evidence": ["night-ferry"]}], "avoid": ["magic"]}, "queries": ["a crime aboard a ship"], "named": [{"title": "Night Ferry to Orsk", "year": 2003}], "latest": 0}');
INSERT INTO public.evoke_sessions VALUES ('an-older-session', 'ann', '{"messages": [{"role": "user", "content": "a crime novel from 1990 on"}, {"role": "assistant", "content": "Here is one (from 1990 on, Crime):\n1. A Quiet Vault (2008): Shares Thriller with Night Ferry to Orsk.", "items": ["quiet-vault"]}], "constraints": [{"field": "year", "op": "$gte", "value": 1990, "words": "from 1990 on"}, {"field": "genres", "op": "$contains", "value": "Crime", "words": "Crime"}], "liked": [], "disliked": [], "seen": ["quiet-vault"], "shown": ["quiet-vault"], "topic": ["novel"], "avoid": [], "seeds": [], "last": ["quiet-vault"], "focus": "quiet-vault", "asked": null, "offered": null, "questioned": [], "reasons": {"quiet-vault": {"rank": 1, "score": 1.0, "channels": {"queries": 1, "collaborative": 1, "dense": 1, "popular": 2}, "explanation": "Shares Thriller with Night Ferry to Orsk.", "evidence": ["night-ferry", "salt-ledger"]}}}', 3, 1796078290.9384475);
SELECT pg_catalog.setval('public.evoke_events_id_seq', 18, true);
SELECT pg_catalog.setval('public.evoke_meta_id_seq', 1, false);
SELECT pg_catalog.setval('public.evoke_profiles_id_seq', 1, true);
ALTER TABLE ONLY public.evoke_answers
    ADD CONSTRAINT evoke_answers_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.evoke_due
    ADD CONSTRAINT evoke_due_pkey PRIMARY KEY (user_hash);
ALTER TABLE ONLY public.evoke_events
    ADD CONSTRAINT evoke_event_identity UNIQUE (user_id, "timestamp", item, kind);
ALTER TABLE ONLY public.evoke_events
    ADD CONSTRAINT evoke_events_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.evoke_meta
    ADD CONSTRAINT evoke_meta_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.evoke_profiles
    ADD CONSTRAINT evoke_profiles_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.evoke_sessions
    ADD CONSTRAINT evoke_sessions_pkey PRIMARY KEY (id);
CREATE INDEX evoke_answer_at ON public.evoke_answers USING btree (at);
CREATE INDEX evoke_profile_of ON public.evoke_profiles USING btree (user_id, key);
CREATE INDEX evoke_session_of ON public.evoke_sessions USING btree (user_id);
