// Histograms of the server, for curves and cells.

export async function curves() {
  return null;
}

export async function columns() {
  return null;
}
