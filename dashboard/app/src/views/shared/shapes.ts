// Shapes of answers that only these views ask for (docs/protocols.md §4).
import type { Health, Open, Reason, State, Timestamp } from "../../types";

/** What a stretch of time counts as in the uptime: the availability, or maintenance, or removed. */
export type SpanClass = "unavailable" | "available" | "limited" | "changing" | "off" | "unknown" | "maintenance" | "removed";

/** How one server's time was spent in a window that ends now. */
export interface Timeline {
  server_id: string;
  window_seconds: number;
  from: Timestamp;
  to: Timestamp;
  /** by time, without holes; time before the first is unknown */
  items: Stretch[];
}

/** A part of a timeline. */
export interface Stretch {
  begin: Timestamp;
  /** absent: it goes on */
  end?: Timestamp;
  class: SpanClass;
  state?: State;
  health?: Health;
  reason?: Reason;
  cause?: string;
  /** untrusted */
  details?: string;
  /** how many stretches it stands for, each too short for the window */
  merged?: number;
}

/** What one environment's agent told of its host in a window that ends now. */
export interface ResourceReport {
  environment_id: string;
  window_seconds: number;
  step_seconds: number;
  resolution: Open<"minute" | "hour">;
  items: ResourceStep[];
}

/** One step of time; what the agent did not tell is absent. */
export interface ResourceStep {
  start: Timestamp;
  cpu_percent?: number;
  cpu_max_percent?: number;
  memory_bytes?: number;
  memory_max_bytes?: number;
  memory_size_bytes?: number;
  disk_bytes?: number;
  disk_max_bytes?: number;
  disk_size_bytes?: number;
}
