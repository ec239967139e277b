import type { Code, Problem, ProblemError } from './types.js';

/** What every error of this package is; its two kinds tell who spoke. */
export abstract class StatusSyncError extends Error {}

/** What a ServiceError is made of beside its message. */
export interface ServiceErrorDetails {
  code: Code;
  location?: string;
  status?: number;
  closeCode?: number;
  requestId?: string;
  retryAfterMs?: number;
  faults?: ProblemError[];
}

/** The service (or this package, before anything was sent) refused: what was asked for is not valid, not allowed, not there. */
export class ServiceError extends StatusSyncError {
  override name = 'ServiceError';
  /** What kind of refusal. */
  readonly code: Code;
  /** The field, parameter or file:line at fault, where there is one. */
  readonly location: string | undefined;
  /** The HTTP status; undefined where the refusal came on a subscription or from this package. */
  readonly status: number | undefined;
  /** The WebSocket close code, where that was the refusal. */
  readonly closeCode: number | undefined;
  /** For the service's operator, who finds it in the log. */
  readonly requestId: string | undefined;
  /** How long the service asked to wait; undefined: it did not. */
  readonly retryAfterMs: number | undefined;
  /** Each fault and where it is. */
  readonly faults: readonly ProblemError[];

  constructor(message: string, d: ServiceErrorDetails, options?: ErrorOptions) {
    super(message, options);
    this.code = d.code;
    this.location = d.location;
    this.status = d.status;
    this.closeCode = d.closeCode;
    this.requestId = d.requestId;
    this.retryAfterMs = d.retryAfterMs;
    this.faults = d.faults ?? [];
  }
}

/** No answer of the service came: it is not there, too slow, or something else answers at that address. */
export class UnreachableError extends StatusSyncError {
  override name = 'UnreachableError';
  readonly baseURL: string;

  constructor(baseURL: string, why: string, options?: ErrorOptions) {
    super(`cannot reach ${baseURL || 'the service'}: ${why}`, options);
    this.baseURL = baseURL;
  }
}

/** An error that this package makes before anything is sent. */
export function invalid(location: string, what: string): ServiceError {
  return new ServiceError(`${location} ${what}`, { code: 'invalid', location });
}

/** Makes the error of a problem (RFC 9457). */
export function errorOfProblem(p: Problem, retryAfterMs?: number): ServiceError {
  const faults = (Array.isArray(p.errors) ? p.errors : []).slice(0, 100);
  let text = p.detail || p.title || p.code;
  const told = faults.map((f) => (f.location ? `${f.location}: ${f.message}` : f.message)).join('; ');
  if (told && !(faults.length === 1 && faults[0]!.message === text)) text = told;
  else if (faults.length === 1 && faults[0]!.location) text = told;
  return new ServiceError(String(text).slice(0, 4000), {
    code: p.code, status: p.status, faults,
    ...(faults[0]?.location ? { location: faults[0].location } : {}),
    ...(p.request_id ? { requestId: p.request_id } : {}),
    ...(retryAfterMs !== undefined ? { retryAfterMs } : {}),
  });
}

/** The code that an HTTP status stands for where a body says none. */
export function codeOfStatus(status: number): Code {
  switch (status) {
    case 401: return 'unauthorized';
    case 403: case 421: return 'forbidden';
    case 404: return 'not_found';
    case 405: return 'method_not_allowed';
    case 409: return 'conflict';
    case 410: return 'expired';
    case 413: return 'too_large';
    case 429: return 'rate_limited';
    case 502: case 503: case 504: return 'unavailable';
  }
  return status >= 400 && status < 500 ? 'invalid' : 'internal';
}
