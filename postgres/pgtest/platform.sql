-- The platform's tables, for tests: names, types and constraints as the service meets them. On a real platform these tables
-- exist already and are never altered, but for the triggers that `statussync migrate` adds; what else it makes is in the schema
-- "statussync".
create schema if not exists auth;
create table if not exists auth.users (id uuid primary key default gen_random_uuid(), email text);

create table account_tool_environments (
  id                        uuid primary key default gen_random_uuid(),
  user_id                   uuid not null references auth.users(id) on delete cascade,
  name                      text,
  description               text,
  do_droplet_id             bigint unique,
  public_ip_address         text,
  region_slug               text,
  size_slug                 text,
  status                    text not null default 'pending_creation',  -- pending_creation creating provisioning awaiting_heartbeat active unresponsive error_creation deleting ...
  dtma_bearer_token         text unique,
  last_heartbeat_at         timestamptz,
  dtma_last_known_version   text,
  dtma_health_details_json  jsonb,
  created_at                timestamptz not null default now(),
  updated_at                timestamptz not null default now()
);

-- The live platforms differ in this enum's values; some have plain text. Read it as text and map with the table of docs/domain.md.
create type account_tool_installation_status_enum as enum (
  'pending_install','installing','pending_config','active','running','starting','starting_on_toolbox','stopping','stopping_on_toolbox',
  'stopped','exited','deploying','pending_deploy','pending_delete','deleting','pending_uninstall','uninstalling','uninstalled','disabled',
  'error','error_starting','error_stopping','error_install','error_uninstall','error_runtime','error_deploying','error_deleting');

create table account_tool_instances (
  id                           uuid primary key default gen_random_uuid(),
  account_tool_environment_id  uuid not null references account_tool_environments(id) on delete cascade,
  instance_name_on_toolbox     text,
  status_on_toolbox            account_tool_installation_status_enum not null default 'pending_install',
  last_heartbeat_from_dtma     timestamptz,
  runtime_details              jsonb,
  instance_error_message       text,
  mcp_server_type              text,          -- null: not an MCP server
  mcp_transport_type           text,          -- http stdio sse websocket
  mcp_endpoint_path            text default '/mcp',
  mcp_server_capabilities      jsonb,
  mcp_discovery_metadata       jsonb,
  created_at                   timestamptz not null default now(),
  updated_at                   timestamptz not null default now()
);

create table mcp_server_status_logs (
  id                   uuid primary key default gen_random_uuid(),
  server_id            uuid not null references account_tool_instances(id) on delete cascade,
  previous_status      jsonb,
  current_status       jsonb,
  source               text not null check (source in ('dtma','heartbeat','manual','system')),
  details              text,
  health_check_result  jsonb,
  heartbeat_data       jsonb,
  response_time_ms     integer,
  uptime_seconds       bigint,
  timestamp            timestamptz not null default now(),
  created_by           uuid references auth.users(id),
  sync_session_id      uuid,
  batch_id             uuid
);
create index on mcp_server_status_logs (server_id, timestamp);

create table agents (id uuid primary key default gen_random_uuid(), user_id uuid not null references auth.users(id), name text);
create table agent_mcp_connections (
  id                      uuid primary key default gen_random_uuid(),
  agent_id                uuid not null references agents(id) on delete cascade,
  mcp_server_instance_id  uuid not null references account_tool_instances(id) on delete cascade,
  is_active               boolean not null default true,
  created_at              timestamptz not null default now()
);
create table user_roles (user_id uuid not null references auth.users(id), role text not null, primary key (user_id, role));  -- role 'admin' sees all
