// How callers of the original service use it. Only this import is another one than before.
import { StatusSyncService, type MCPServerStatus, type StatusUpdate, type StatusUpdateFilter, type SyncMetrics } from '@statussync/client';

/** As a screen does it: counters, a list of what is broken, and a log line for each change. */
export class StatusBoard {
  readonly lines: string[] = [];
  readonly recoveries: string[] = [];
  readonly stateChangesOfFirst: StatusUpdate[] = [];
  statuses: Record<string, MCPServerStatus> = {};
  private service: StatusSyncService;
  private subscriptionIds: string[] = [];

  constructor(supabase?: { from(table: string): unknown }) {
    this.service = new StatusSyncService(supabase, { interval: 15000, timeout: 5000 });
  }

  async open(firstServerId: string): Promise<void> {
    await this.service.start();
    if (!this.service.isActive()) throw new Error('not active');
    this.subscriptionIds.push(this.service.subscribe((update: StatusUpdate) => {
      this.statuses[update.serverId] = update.currentStatus;
      this.lines.push(
        `${update.timestamp.toISOString()} ${update.serverId}: ${update.previousStatus.state}/${update.previousStatus.health} -> ` +
        `${update.currentStatus.state}/${update.currentStatus.health} (${update.source}) ${update.details ?? ''}`);
    }));
    const filters: StatusUpdateFilter[] = [{ type: 'recovery' }, { type: 'error_state', serverIds: [], statusStates: ['error'], healthLevels: ['unhealthy'] }];
    this.subscriptionIds.push(this.service.subscribe((update) => this.recoveries.push(update.serverId), filters));
    this.subscriptionIds.push(this.service.subscribeToServer(firstServerId, (update) => this.stateChangesOfFirst.push(update)));
    this.statuses = await this.service.getAllServerStatuses();
  }

  async overview(): Promise<{ running: string[]; broken: string[]; metrics: SyncMetrics }> {
    const running = await this.service.getServersByStatus('running');
    const broken = await this.service.getServersByHealth('unhealthy');
    return {
      running: running.map((server) => `${server.id.toString()}@${server.environment.name}`),
      broken: broken.map((server) => `${server.name} (${server.endpoint})`),
      metrics: await this.service.getSyncMetrics(),
    };
  }

  async describe(serverId: string): Promise<string> {
    const status = await this.service.getServerStatus(serverId);
    const uptime = status.uptime === undefined ? '-' : `${Math.floor(status.uptime / 60)} min`;
    return `${status.state}, ${status.health}, up ${uptime}, since ${status.lastStarted?.toISOString() ?? '-'}, ${status.lastError ?? 'no error'}`;
  }

  async checkNow(serverId: string): Promise<boolean> {
    return this.service.performHeartbeatCheck(serverId);
  }

  async checkAll(): Promise<number> {
    const results = await this.service.performBulkHeartbeatCheck();
    return Object.values(results).filter(Boolean).length;
  }

  async markAsBroken(serverId: string, why: string): Promise<void> {
    const current = await this.service.getServerStatus(serverId);
    await this.service.forceStatusUpdate(serverId, { ...current, state: 'error', health: 'unhealthy', lastError: why });
  }

  async refresh(): Promise<number> {
    const updates: StatusUpdate[] = await this.service.syncAllServerStatuses();
    const one: StatusUpdate | null = await this.service.syncServerStatus(Object.keys(this.statuses)[0]!);
    return updates.length + (one ? 1 : 0);
  }

  async history(serverId: string): Promise<string[]> {
    const updates = await this.service.getStatusHistory(serverId, 24);
    return updates.map((u) => `${u.previousStatus.state}>${u.currentStatus.state}`);
  }

  connection(): 'connected' | 'connecting' | 'disconnected' | 'error' {
    return this.service.getWebSocketStatus();
  }

  async monitoring(on: boolean): Promise<void> {
    if (on) await this.service.startHeartbeatMonitoring();
    else await this.service.stopHeartbeatMonitoring();
  }

  async reopen(): Promise<void> {
    await this.service.restart();
  }

  async close(): Promise<void> {
    this.subscriptionIds.forEach((id) => this.service.unsubscribe(id));
    this.service.unsubscribeAll();
    await this.service.stop();
  }
}
