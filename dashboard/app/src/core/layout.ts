// Where the tiles stand. Only the lines in sight exist in the document, so a fleet of thousands costs what is seen.

/** Group is the servers of one environment, in order. */
export interface Group {
  id: string;
  servers: readonly string[];
}

/** Line is one row of tiles; the first of a group has its label. */
export interface Row {
  y: number;
  height: number;
  group: number;
  /** the label stands at the beginning of this row (beside or above the tiles) */
  label: boolean;
  from: number;
  to: number;
}

/** Metrics are sizes in px. */
export interface Metrics {
  columns: number;
  tile: number; // height of a tile
  gap: number; // between rows of tiles
  labelMin: number; // least height of a group, where the label stands beside the tiles
  labelAbove: number; // height of a label above the tiles; 0 where it stands beside them
  groupGap: number;
}

export interface Layout {
  rows: Row[];
  height: number;
  columns: number;
}

/** arrange computes the rows of all groups from top to bottom. */
export function arrange(groups: readonly Group[], m: Metrics): Layout {
  const rows: Row[] = [];
  const columns = m.columns >= 1 ? Math.floor(m.columns) : 1;
  let y = 0;
  groups.forEach((g, group) => {
    const start = y;
    let first = true;
    for (let from = 0; from < g.servers.length || first; from += columns) {
      const to = Math.min(g.servers.length, from + columns);
      const above = first ? m.labelAbove : 0;
      rows.push({ y, height: above + m.tile, group, label: first, from, to });
      y += above + m.tile + m.gap;
      first = false;
    }
    y = Math.max(y - m.gap, start + m.labelMin) + m.groupGap;
  });
  return { rows, height: Math.max(0, y - m.groupGap), columns };
}

/** visible is the range of rows [from, to) that touch the span between top and bottom. */
export function visible(rows: readonly Row[], top: number, bottom: number): { from: number; to: number } {
  const from = lowest(rows, (r) => r.y + r.height >= top);
  const to = lowest(rows, (r) => r.y > bottom);
  return { from, to: Math.max(from, to) };
}

/** lowest is the first index whose row passes a test that all later rows pass, too. */
function lowest(rows: readonly Row[], test: (r: Row) => boolean): number {
  let lo = 0;
  let hi = rows.length;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (test(rows[mid]!)) hi = mid;
    else lo = mid + 1;
  }
  return lo;
}
