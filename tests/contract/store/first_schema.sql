BEGIN TRANSACTION;
CREATE TABLE events (
	number INTEGER NOT NULL, 
	at_s DOUBLE NOT NULL, 
	kind TEXT NOT NULL, 
	message TEXT NOT NULL, 
	job_id TEXT, 
	data TEXT NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "events" VALUES(1,1000.0,'queued','submitted by anna','train-aaaaaa','');
INSERT INTO "events" VALUES(2,1000.0,'queued','submitted by anna','eval-bbbbbb','');
INSERT INTO "events" VALUES(3,1000.0,'starting','granted','train-aaaaaa','{"reason":"granted","attempt":1,"placement":[["n0",1],["n1",1]]}');
INSERT INTO "events" VALUES(4,1000.0,'running','answered','train-aaaaaa','{"reason":"answered","attempt":1}');
CREATE TABLE facts (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "facts" VALUES('cluster','x');
CREATE TABLE fleetune_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT fleetune_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "fleetune_schema" VALUES('0001');
CREATE TABLE jobs (
	number INTEGER NOT NULL, 
	job_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	submitted_by TEXT NOT NULL, 
	num_workers INTEGER NOT NULL, 
	cpus_per_worker INTEGER NOT NULL, 
	gpus_per_worker INTEGER NOT NULL, 
	accelerator_type TEXT, 
	priority BIGINT NOT NULL, 
	"after" TEXT NOT NULL, 
	not_before_s DOUBLE, 
	max_runtime_s DOUBLE, 
	preemptible BOOLEAN NOT NULL, 
	submitted_s DOUBLE NOT NULL, 
	wanted TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	message TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	placement TEXT NOT NULL, 
	waiting_since_s DOUBLE NOT NULL, 
	waited_s DOUBLE NOT NULL, 
	started_s DOUBLE, 
	attained_s DOUBLE NOT NULL, 
	ended_s DOUBLE, 
	remaining_s DOUBLE, 
	interruptions INTEGER NOT NULL, 
	interruption_cost_s DOUBLE NOT NULL, 
	retries TEXT NOT NULL, 
	run TEXT, 
	step BIGINT NOT NULL, 
	total_steps BIGINT, 
	metrics TEXT NOT NULL, 
	changed BIGINT NOT NULL, 
	PRIMARY KEY (number), 
	FOREIGN KEY(tenant) REFERENCES tenants (name)
);
INSERT INTO "jobs" VALUES(1,'train-aaaaaa','train','finetune','a','anna',2,4,1,NULL,0,'',NULL,NULL,1,1000.0,'run','running','answered','',1,'[["n0",1],["n1",1]]',1000.0,0.0,1000.0,0.0,NULL,50.0,0,2.0,'','/runs/x',5,10,'{"loss":2.5}',7);
INSERT INTO "jobs" VALUES(2,'eval-bbbbbb','eval','finetune','b','anna',2,4,1,NULL,0,'["train-aaaaaa"]',NULL,NULL,1,1000.0,'run','queued','submitted','',0,'',1000.0,0.0,NULL,0.0,NULL,NULL,0,0.0,'',NULL,0,NULL,'',4);
CREATE TABLE keys (
	scope TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	first_job BIGINT NOT NULL, 
	jobs INTEGER NOT NULL, 
	created_s DOUBLE NOT NULL, 
	PRIMARY KEY (scope, "key")
);
CREATE TABLE leases (
	number INTEGER NOT NULL, 
	job BIGINT NOT NULL, 
	attempt INTEGER NOT NULL, 
	placement TEXT NOT NULL, 
	granted_s DOUBLE NOT NULL, 
	released_s DOUBLE, 
	PRIMARY KEY (number), 
	CONSTRAINT leases_by_attempt UNIQUE (job, attempt), 
	FOREIGN KEY(job) REFERENCES jobs (number)
);
INSERT INTO "leases" VALUES(5,1,1,'[["n0",1],["n1",1]]',1000.0,NULL);
CREATE TABLE node_rules (
	node_id TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	"order" TEXT NOT NULL, 
	"by" TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	since_s DOUBLE NOT NULL, 
	PRIMARY KEY (node_id)
);
CREATE TABLE queue (
	id INTEGER NOT NULL, 
	last_change BIGINT NOT NULL, 
	last_job BIGINT NOT NULL, 
	last_event BIGINT NOT NULL, 
	epoch BIGINT NOT NULL, 
	holder TEXT, 
	url TEXT, 
	expires_s DOUBLE, 
	PRIMARY KEY (id)
);
INSERT INTO "queue" VALUES(1,8,2,4,1,'one','http://one',1030.0);
CREATE TABLE specs (
	number INTEGER NOT NULL, 
	spec TEXT NOT NULL, 
	PRIMARY KEY (number), 
	FOREIGN KEY(number) REFERENCES jobs (number)
);
INSERT INTO "specs" VALUES(1,'{"seed": 1}');
INSERT INTO "specs" VALUES(2,'{"seed": 1}');
CREATE TABLE tenants (
	name TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	weight DOUBLE NOT NULL, 
	guaranteed TEXT NOT NULL, 
	"limit" TEXT NOT NULL, 
	changed_s DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "tenants" VALUES('a',1,1.0,'','',1000.0);
INSERT INTO "tenants" VALUES('b',2,1.0,'','',1000.0);
CREATE TABLE tokens (
	name TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	digest TEXT NOT NULL, 
	role TEXT NOT NULL, 
	tenant TEXT, 
	created_s DOUBLE NOT NULL, 
	revoked_s DOUBLE, 
	PRIMARY KEY (name)
);
INSERT INTO "tokens" VALUES('anna',8,'ab12','member','a',1000.0,NULL);
CREATE UNIQUE INDEX jobs_by_id ON jobs (job_id);
CREATE UNIQUE INDEX jobs_by_change ON jobs (changed);
CREATE INDEX jobs_by_state ON jobs (state, number, job_id);
CREATE INDEX jobs_by_tenant ON jobs (tenant, state, number, job_id);
CREATE INDEX leases_by_release ON leases (released_s);
CREATE INDEX events_by_job ON events (job_id, number);
COMMIT;
