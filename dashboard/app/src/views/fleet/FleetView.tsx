/** FleetView is the first view. */
export function FleetView() {
  return <section class="page" />;
}
