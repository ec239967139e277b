/**
 * A typed client of statussync, the one true status of a fleet of MCP servers: calls, live subscriptions that repair themselves,
 * and a live mirror. Without dependencies, for browsers and Node.
 */
export { Client } from './client.js';
export type { CallOptions, ClientOptions, List, PageQuery, ServerQuery, Token, UpdatesQuery } from './client.js';
export { ServiceError, StatusSyncError, UnreachableError } from './errors.js';
export { Mirror, availabilityOf } from './mirror.js';
export type { MirrorOptions } from './mirror.js';
export { Subscription, reconnects } from './subscribe.js';
export type {
  ConnectionPhase, ConnectionState, SubscribeOptions, SubscriptionEvent, WebSocketConstructor, WebSocketLike,
} from './subscribe.js';
export type * from './types.js';
export { StatusSyncService } from './StatusSyncService.js';
export type {
  ConnectionTest, EnhancedMCPServer, HeartbeatConfig, MCPServerStatus, StatusCache, StatusSubscription, StatusUpdate, StatusUpdateFilter,
  SyncMetrics,
} from './StatusSyncService.js';
